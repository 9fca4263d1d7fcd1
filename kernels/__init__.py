"""Gate math of every variant, one folder each. Installed as `fastlstm.kernels`, never as a global `kernels`."""

if __name__ != "fastlstm.kernels":
    raise ImportError("this folder is installed as fastlstm.kernels; install fastlstm and import it by that name")
