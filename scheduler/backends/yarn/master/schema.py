"""The messages of Hadoop's RPC and of YARN that the master uses, with the fields that it uses.

They follow Hadoop's RpcHeader.proto, ProtobufRpcEngine2.proto, IpcConnectionContext.proto, Security.proto,
yarn_protos.proto and yarn_service_protos.proto. Enums are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from .wire import ZIGZAG

# Hadoop's RPC


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcRequestHeader:
    rpc_kind: Annotated[int, 1]
    rpc_op: Annotated[int, 2]
    call_id: Annotated[int, 3, ZIGZAG]
    client_id: Annotated[bytes, 4]
    retry_count: Annotated[int, 5, ZIGZAG] = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcResponseHeader:
    call_id: Annotated[int, 1]
    status: Annotated[int, 2]
    exception_class_name: Annotated[str, 4] = ""
    error_msg: Annotated[str, 5] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslAuth:
    """A way to log in that the server offers. The client sends the chosen one back, without its `challenge`.

    The other fields must not change: an empty field stays empty, and an absent one absent.
    """

    method: Annotated[str, 1]
    mechanism: Annotated[str, 2]
    protocol: Annotated[str | None, 3] = None
    server_id: Annotated[str | None, 4] = None
    challenge: Annotated[bytes, 5] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcSasl:
    state: Annotated[int, 2]
    token: Annotated[bytes, 3] = b""
    auths: Annotated[tuple[SaslAuth, ...], 4] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHeader:
    method_name: Annotated[str, 1]
    declaring_class_protocol_name: Annotated[str, 2]
    client_protocol_version: Annotated[int, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class IpcConnectionContext:
    protocol: Annotated[str, 3]


# Credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    identifier: Annotated[bytes, 1]
    password: Annotated[bytes, 2]
    kind: Annotated[str, 3]
    service: Annotated[str, 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsKV:
    alias: Annotated[str, 1]
    token: Annotated[Token | None, 2] = None
    secret: Annotated[bytes, 3] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsMessage:
    """Hadoop's CredentialsProto."""

    tokens: Annotated[tuple[CredentialsKV, ...], 1] = ()
    secrets: Annotated[tuple[CredentialsKV, ...], 2] = ()


# Values of YARN


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationId:
    id: Annotated[int, 1] = 0
    cluster_timestamp: Annotated[int, 2] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationAttemptId:
    application_id: Annotated[ApplicationId, 1] = ApplicationId()
    attempt_id: Annotated[int, 2] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerId:
    app_attempt_id: Annotated[ApplicationAttemptId, 2] = ApplicationAttemptId()
    id: Annotated[int, 3] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeId:
    host: Annotated[str, 1] = ""
    port: Annotated[int, 2] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceInformation:
    key: Annotated[str, 1]
    value: Annotated[int, 2] = 0
    units: Annotated[str, 3] = ""
    type: Annotated[int, 4] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    memory: Annotated[int, 1] = 0
    virtual_cores: Annotated[int, 2] = 0
    resource_value_map: Annotated[tuple[ResourceInformation, ...], 3] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    priority: Annotated[int, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A container that the ResourceManager has granted: Hadoop's ContainerProto."""

    id: Annotated[ContainerId, 1] = ContainerId()
    node_id: Annotated[NodeId, 2] = NodeId()
    resource: Annotated[Resource, 4] = Resource()
    container_token: Annotated[Token | None, 6] = None
    allocation_request_id: Annotated[int, 8] = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    container_id: Annotated[ContainerId, 1] = ContainerId()
    diagnostics: Annotated[str, 3] = "N/A"
    exit_status: Annotated[int, 4] = -1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    node_id: Annotated[NodeId, 1] = NodeId()
    node_state: Annotated[int, 7] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NMToken:
    node_id: Annotated[NodeId, 1] = NodeId()
    token: Annotated[Token | None, 2] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedException:
    message: Annotated[str, 1] = ""
    class_name: Annotated[str, 3] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StringStringMap:
    key: Annotated[str, 1]
    value: Annotated[str, 2]


# The ResourceManager's ApplicationMasterProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterApplicationMasterRequest:
    host: Annotated[str, 1]
    rpc_port: Annotated[int, 2]
    tracking_url: Annotated[str, 3] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterApplicationMasterResponse:
    maximum_capability: Annotated[Resource, 1] = Resource()
    containers_from_previous_attempts: Annotated[tuple[Grant, ...], 4] = ()
    queue: Annotated[str, 5] = ""
    nm_tokens_from_previous_attempts: Annotated[tuple[NMToken, ...], 6] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRequest:
    """One row of an ask: how many containers may go to a node, to a rack, or anywhere (`*`)."""

    priority: Annotated[Priority, 1]
    resource_name: Annotated[str, 2]
    capability: Annotated[Resource, 3]
    num_containers: Annotated[int, 4]
    relax_locality: Annotated[bool, 5] = True
    node_label_expression: Annotated[str, 6] = ""
    allocation_request_id: Annotated[int, 8] = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateRequest:
    ask: Annotated[tuple[ResourceRequest, ...], 1] = ()
    release: Annotated[tuple[ContainerId, ...], 2] = ()
    response_id: Annotated[int, 4]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionContainer:
    id: Annotated[ContainerId, 1] = ContainerId()


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictPreemptionContract:
    container: Annotated[tuple[PreemptionContainer, ...], 1] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionContract:
    container: Annotated[tuple[PreemptionContainer, ...], 2] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionMessage:
    strict_contract: Annotated[StrictPreemptionContract, 1] = StrictPreemptionContract()
    contract: Annotated[PreemptionContract, 2] = PreemptionContract()


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateResponse:
    response_id: Annotated[int, 2] = 0
    allocated_containers: Annotated[tuple[Grant, ...], 3] = ()
    completed_container_statuses: Annotated[tuple[ContainerStatus, ...], 4] = ()
    limit: Annotated[Resource | None, 5] = None
    updated_nodes: Annotated[tuple[NodeReport, ...], 6] = ()
    preempt: Annotated[PreemptionMessage, 8] = PreemptionMessage()
    nm_tokens: Annotated[tuple[NMToken, ...], 9] = ()
    am_rm_token: Annotated[Token | None, 12] = None
    containers_from_previous_attempts: Annotated[tuple[Grant, ...], 17] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishApplicationMasterRequest:
    diagnostics: Annotated[str, 1] = ""
    final_application_status: Annotated[int, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishApplicationMasterResponse:
    is_unregistered: Annotated[bool, 1] = False


# A NodeManager's ContainerManagementProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class URL:
    scheme: Annotated[str, 1]
    host: Annotated[str, 2] = ""
    port: Annotated[int, 3] = 0
    file: Annotated[str, 4] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResource:
    resource: Annotated[URL, 1]
    size: Annotated[int, 2]
    timestamp: Annotated[int, 3]
    type: Annotated[int, 4]
    visibility: Annotated[int, 5]


@dataclass(frozen=True, slots=True, kw_only=True)
class StringLocalResourceMap:
    key: Annotated[str, 1]
    value: Annotated[LocalResource, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerLaunchContext:
    local_resources: Annotated[tuple[StringLocalResourceMap, ...], 1] = ()
    tokens: Annotated[bytes, 2] = b""
    environment: Annotated[tuple[StringStringMap, ...], 4] = ()
    command: Annotated[tuple[str, ...], 5] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartContainerRequest:
    container_launch_context: Annotated[ContainerLaunchContext, 1]
    container_token: Annotated[Token | None, 2] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartContainersRequest:
    start_container_request: Annotated[tuple[StartContainerRequest, ...], 1] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StopContainersRequest:
    container_id: Annotated[tuple[ContainerId, ...], 1] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerExceptionMap:
    container_id: Annotated[ContainerId, 1] = ContainerId()
    exception: Annotated[SerializedException, 2] = SerializedException()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartContainersResponse:
    failed_requests: Annotated[tuple[ContainerExceptionMap, ...], 3] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StopContainersResponse:
    failed_requests: Annotated[tuple[ContainerExceptionMap, ...], 2] = ()
