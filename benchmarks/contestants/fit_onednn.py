"""resfit with the extra `resfit[cpu]`."""

from benchmarks.contestants import fit


class Contestant(fit.Contestant):
    """resfit, whose convolutions are oneDNN's where that is faster."""

    cpu_kernels = "onednn"
