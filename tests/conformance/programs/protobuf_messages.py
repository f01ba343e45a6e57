# state: protobuf and its pool of descriptions
# needs: protobuf

# %%
from google.protobuf import descriptor_pool, struct_pb2, timestamp_pb2

message = struct_pb2.Struct()
message.update({"a": 1})
print(message, timestamp_pb2.Timestamp.FromString(timestamp_pb2.Timestamp(seconds=3).SerializeToString()))
print(descriptor_pool.Default() is descriptor_pool.Default())
