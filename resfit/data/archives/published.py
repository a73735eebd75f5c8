"""Where the classic data sets are published, and how to know their files.

Sizes and checksums are those that TensorFlow Datasets 4.9.10 keeps (tensorflow_datasets/url_checksums).
"""

from resfit.data.archives.download import Remote

_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

IDX_FILES = {
    "fashion_mnist": [
        Remote(
            f"{_FASHION}train-images-idx3-ubyte.gz",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        Remote(
            f"{_FASHION}train-labels-idx1-ubyte.gz",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        Remote(
            f"{_FASHION}t10k-images-idx3-ubyte.gz",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        Remote(
            f"{_FASHION}t10k-labels-idx1-ubyte.gz",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ],
}
