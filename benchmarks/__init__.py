"""Speed of every variant against its peers. Installed as `fastlstm.benchmarks`."""

if __name__ != "fastlstm.benchmarks":
    raise ImportError("this folder is installed as fastlstm.benchmarks; install fastlstm and import it by that name")
