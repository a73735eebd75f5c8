"""The contestant resfit with the extra `resfit[cpu]`."""

from benchmarks.contestants import fit


class Contestant(fit.Contestant):
    """The contestant resfit, with oneDNN for the convolutions that it computes faster."""

    cpu_kernels = "onednn"
