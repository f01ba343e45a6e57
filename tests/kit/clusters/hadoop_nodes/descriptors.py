"""The protobuf messages of Hadoop, as protobuf's own library sees them. They are read from the classes in the jars.

protoc keeps the descriptor of a file in its Java class, as string constants: bytes as Latin-1 in modified UTF-8.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator

from google.protobuf import descriptor_pb2, descriptor_pool, message
from google.protobuf.message_factory import GetMessageClass

from .build import jars

_CLASSES = {
    "hadoop-common": (
        "org/apache/hadoop/ipc/protobuf/RpcHeaderProtos",
        "org/apache/hadoop/ipc/protobuf/ProtobufRpcEngine2Protos",
        "org/apache/hadoop/ipc/protobuf/IpcConnectionContextProtos",
        "org/apache/hadoop/security/proto/SecurityProtos",
    ),
    "hadoop-yarn-api": (
        "org/apache/hadoop/yarn/proto/YarnProtos",
        "org/apache/hadoop/yarn/proto/YarnServiceProtos",
    ),
}
_UTF8, _STRING = 1, 8
_SIZES = {3: 5, 4: 5, 5: 9, 6: 9, 7: 3, 9: 5, 10: 5, 11: 5, 12: 5, 15: 4, 16: 3, 17: 5, 18: 5, 19: 3, 20: 3}
"""The sizes in bytes of a class file's constants, except texts and strings, by tag (JVM specification, 4.4)."""
_TWO_PLACES = (5, 6)


def load_messages() -> dict[str, type[message.Message]]:
    """Return the classes of all messages in the files of `_CLASSES`, by their full names."""
    pool = descriptor_pool.DescriptorPool()
    names: list[str] = []
    for file in _read_files():
        pool.Add(file)
        names += [f"{file.package}.{name}" for each in file.message_type for name in _names(each)]
    return {name: GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


def _names(kind: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    yield kind.name
    for inner in kind.nested_type:
        yield from (f"{kind.name}.{name}" for name in _names(inner))


def _read_files() -> Iterator[descriptor_pb2.FileDescriptorProto]:
    for stem, classes in _CLASSES.items():
        (jar,) = jars().glob(f"{stem}-[0-9]*.jar")
        with zipfile.ZipFile(jar) as archive:
            for name in classes:
                yield _read_descriptor(archive.read(f"{name}.class"))


def _read_descriptor(data: bytes) -> descriptor_pb2.FileDescriptorProto:
    """Return the descriptor in a class file. The string constants are joined until they can be parsed."""
    constants = _read_strings(data)
    first = next(i for i, text in enumerate(constants) if text.startswith(b"\n") and b".proto" in text[:60])
    content = b""
    for text in constants[first:]:
        content += text.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass").encode("latin-1")
        try:
            return descriptor_pb2.FileDescriptorProto.FromString(content)
        except message.DecodeError:
            continue
    raise ValueError("no descriptor in this class")


def _read_strings(data: bytes) -> list[bytes]:
    """Return the string constants of a class file in their order."""
    (count,) = struct.unpack_from(">H", data, 8)
    at, place = 10, 1
    texts: dict[int, bytes] = {}
    strings: list[int] = []
    while place < count:
        tag = data[at]
        if tag == _UTF8:
            (size,) = struct.unpack_from(">H", data, at + 1)
            texts[place] = data[at + 3 : at + 3 + size]
            at += 3 + size
        elif tag == _STRING:
            strings += struct.unpack_from(">H", data, at + 1)
            at += 3
        else:
            at += _SIZES[tag]
        place += 2 if tag in _TWO_PLACES else 1
    return [texts[index] for index in strings]
