"""The weights of MTCNN's networks, out of the package that has them, and the ONNX graphs around them."""

import io
import math
import pickletools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Weights = list[npt.NDArray[np.float32]]
Pool = tuple[int, bool]
"""Window, and whether the last window may reach over the edge; the stride is 2."""

POOLS: dict[str, tuple[Pool | None, ...]] = {
    "pnet": ((2, True), None, None),
    "rnet": ((3, True), (3, False), None),
    "onet": ((3, True), (3, False), (2, True), None),
}
"""After each convolution."""
OPSET = 17


def read_weights(name: str) -> Weights:
    """The arrays of a weights file, in their order, without running what a pickle may ask for.

    joblib writes a description of each array into the pickle, and behind it a byte with the length of the padding, the
    padding, and the numbers as they are. `pickletools` names the steps of the description and takes none of them.
    """
    import lz4.frame  # comes with mtcnn

    spec = find_spec("mtcnn")
    packed = Path(str(spec and spec.origin)).parent / "assets" / "weights" / f"{name}.lz4"
    stream = io.BytesIO(lz4.frame.decompress(packed.read_bytes()))
    arrays: Weights = []
    shape: list[int] = []
    numbers: list[int] = []
    before = ""
    for step, argument, _ in pickletools.genops(stream):
        if step.name.startswith("BININT"):
            numbers.append(int(str(argument)))
        else:
            if step.name.startswith("TUPLE") and not shape:
                shape = numbers  # the first tuple of numbers in a description
            numbers = []
        if (before, step.name) == ("SETITEMS", "BUILD"):  # the end of a description
            stream.read(stream.read(1)[0])
            count = math.prod(shape)
            arrays.append(np.frombuffer(stream.read(4 * count), dtype="<f4", count=count).reshape(shape))
            shape = []
        before = step.name
    return arrays


class _Graph:
    """An ONNX graph under construction; takes the weights from the front of a list."""

    def __init__(self, weights: Weights) -> None:
        self._left = list(weights)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def weights(self) -> npt.NDArray[np.float32]:
        """The next of them."""
        return self._left.pop(0)

    def add(self, kind: str, at: str, *weights: npt.NDArray[np.float32], to: str = "", **attributes: Any) -> str:
        """A node behind another; the name of what it gives."""
        names = [f"w{len(self.tensors) + index}" for index in range(len(weights))]
        pairs = zip(weights, names, strict=True)
        self.tensors += [numpy_helper.from_array(np.ascontiguousarray(values), name) for values, name in pairs]
        to = to or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [at, *names], [to], **attributes))
        return to

    def convolution(self, at: str) -> str:
        """A convolution without padding."""
        return self.add("Conv", at, self.weights().transpose(3, 2, 0, 1), self.weights())

    def dense(self, at: str, to: str = "") -> str:
        """A fully connected layer."""
        return self.add("Gemm", at, self.weights(), self.weights(), to=to)


def build(name: str) -> bytes:
    """The model ``pnet``, ``rnet`` or ``onet``, serialised."""
    graph = _Graph(read_weights(name))
    at = graph.add("Transpose", "pixels", perm=[0, 3, 1, 2])
    for pool in POOLS[name]:
        at = graph.convolution(at)
        at = graph.add("PRelu", at, graph.weights().reshape(-1, 1, 1))
        if pool is not None:
            window, over = pool
            edge = "SAME_UPPER" if over else "VALID"
            at = graph.add("MaxPool", at, kernel_shape=[window] * 2, strides=[2, 2], auto_pad=edge)
    if name == "pnet":
        graph.add("Transpose", graph.convolution(at), perm=[0, 2, 3, 1], to="boxes")
        graph.add("Softmax", graph.add("Transpose", graph.convolution(at), perm=[0, 2, 3, 1]), axis=3, to="scores")
        takes: list[str | int] = [1, "height", "width", 3]
        gives: list[str | int] = [1, "rows", "columns"]
    else:
        at = graph.add("Flatten", graph.add("Transpose", at, perm=[0, 3, 2, 1]))  # the weights count columns first
        at = graph.add("PRelu", graph.dense(at), graph.weights())
        graph.dense(at, to="boxes")
        if name == "onet":
            graph.weights(), graph.weights()  # of eyes, nose and mouth
        graph.add("Softmax", graph.dense(at), axis=1, to="scores")
        side = 24 if name == "rnet" else 48
        takes, gives = ["n", side, side, 3], ["n"]
    outputs = [
        helper.make_tensor_value_info("boxes", onnx.TensorProto.FLOAT, [*gives, 4]),
        helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [*gives, 2]),
    ]
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, takes)
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, [pixels], outputs, graph.tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
