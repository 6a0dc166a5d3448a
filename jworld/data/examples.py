"""Reader of `tf.train.Example`, the message in which TensorFlow Datasets stores an example, without TensorFlow.

The message maps names to lists of bytes, float32 or int64. Source: tensorflow, `core/example/{example,feature}.proto`.
"""

import functools
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message, message_factory

#: Fields of a feature by their numbers, and the types of their values.
_LISTS = (("bytes_list", "TYPE_BYTES"), ("float_list", "TYPE_FLOAT"), ("int64_list", "TYPE_INT64"))
_PACKAGE = "jworld"


def _field(name: str, number: int, kind: str, *, repeated: bool = False, **more: Any) -> dict[str, Any]:
    label = "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
    shape = {"type": kind} if kind.startswith("TYPE_") else {"type": "TYPE_MESSAGE", "typeName": f".{_PACKAGE}.{kind}"}
    return {"name": name, "number": number, "label": label, **shape, **more}


@functools.cache
def _message() -> Any:
    """Return the class of the message."""
    lists = [
        {"name": f"List{number}", "field": [_field("value", 1, kind, repeated=True)]}
        for number, (_, kind) in enumerate(_LISTS, 1)
    ]
    fields = [_field(name, number, f"List{number}", oneofIndex=0) for number, (name, _) in enumerate(_LISTS, 1)]
    entry = {
        "name": "FeatureEntry",
        "field": [_field("key", 1, "TYPE_STRING"), _field("value", 2, "Feature")],
        "options": {"mapEntry": True},
    }
    features = {
        "name": "Features",
        "field": [_field("feature", 1, "Features.FeatureEntry", repeated=True)],
        "nestedType": [entry],
    }
    file = {
        "name": f"{_PACKAGE}/example.proto",
        "package": _PACKAGE,
        "syntax": "proto3",
        "messageType": [
            *lists,
            {"name": "Feature", "field": fields, "oneofDecl": [{"name": "kind"}]},
            features,
            {"name": "Example", "field": [_field("features", 1, "Features")]},
        ],
    }
    pool = descriptor_pool.DescriptorPool()
    pool.Add(json_format.ParseDict(file, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


class Example:
    """A decoded message.

    Raises:
      ValueError: the bytes are not such a message.
    """

    def __init__(self, content: bytes) -> None:
        try:
            self._features = _message().FromString(content).features.feature
        except message.DecodeError as error:
            raise ValueError(f"it holds no example of TensorFlow ({error})") from error

    def images(self, name: str) -> list[bytes]:
        """Return the bytes under a name; a ValueError if there are none."""
        return list(self._list(name, "bytes_list"))

    def count_images(self, name: str) -> int:
        """Return how many `images` there are."""
        return len(self._list(name, "bytes_list"))

    def texts(self, name: str) -> list[str]:
        """Return the texts under a name, [] if it is absent; a ValueError if they are not UTF-8."""
        if name not in self._features:
            return []
        return [text.decode() for text in self._list(name, "bytes_list")]

    def numbers(self, name: str) -> np.ndarray:
        """Return the numbers under a name, float64 [N]; a ValueError if it has none."""
        return np.array(self._list(name, "float_list", "int64_list"), np.float64)

    def _list(self, name: str, *kinds: str) -> Any:
        # Indexing a map of a message would add the missing name.
        kind = self._features[name].WhichOneof("kind") if name in self._features else None
        if kind not in kinds:
            raise ValueError(f"{name!r:.80} is {kind or 'absent'}, expected a {' or '.join(kinds)}")
        return getattr(self._features[name], kind).value
