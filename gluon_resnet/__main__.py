# SPDX-License-Identifier: Apache-2.0
"""`python -m gluon_resnet`: the list of commands."""

from tabulate import tabulate

VERBS = {
    "infer": "classify images",
    "models": "list all models with their parameters and FLOPs",
    "weights": "list, download and verify published weights",
    "convert": "convert a weights file to another format",
    "quantize": "make an int8 model of a model and images",
    "train": "train a model from record files",
    "benchmark": "measure a model's speed on this machine",
    "validate": "measure top-1 and top-5 on a record file",
}

if __name__ == "__main__":
    print("usage: python -m gluon_resnet.VERB [--help]\n")
    print(tabulate(VERBS.items(), tablefmt="plain"))
