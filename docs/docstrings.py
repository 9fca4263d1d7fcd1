"""Docstrings as Markdown: arguments become a list, and examples blocks of code. mkdocs.yml names this extension of Griffe."""

import re

import griffe


class AsMarkdown(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            names = {parameter.name for parameter in obj.parameters} if obj.is_function or obj.is_class else set()
            obj.docstring.value = as_markdown(obj.docstring.value, names)


def as_markdown(text: str, names: set[str]) -> str:
    """Lines that begin with an argument's name are items; from `>>>` to the next empty line it is an example."""
    lines = [""]
    example = item = False
    for line in text.splitlines():
        if example != (bool(line) and (example or line.startswith(">>>"))):
            example = not example
            lines.append("```pycon" if example else "```")
        argument = re.match(r"(\w+)(?=(?: \(.*?\))?:)", line)
        begins = not example and argument is not None and argument[1] in names
        if lines[-1] and begins != item and not line.startswith(" "):
            lines.append("")  # around a list
        item = bool(line) and (begins or (item and line.startswith(" ")))
        lines.append(f"- `{argument[1]}`{line[argument.end() :]}" if begins else line)
    return "\n".join([*lines[1:], "```"] if example else lines[1:])
