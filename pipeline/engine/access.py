"""The token of a Ray cluster: whether the cluster wants one, where this machine has it, and Ray told so.

Ray reads its authentication mode once, when it is imported, and joins a cluster at an address in that mode alone. In
the wrong one it is refused (no token where one is wanted), or its workers are (a driver that wants a token from a
cluster that has none). So the cluster is asked first, and its answer is what this process goes by.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import grpc
from ray._common.tls_utils import load_certs_from_env
from ray._raylet import AuthenticationTokenLoader, Config
from ray.core.generated import (
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    ray_client_pb2,
    ray_client_pb2_grpc,
)

from pipeline.errors import FacultyError, InputError

MODE, TOKEN, FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
PATIENCE_S = 15


def token() -> tuple[str, str] | None:
    """The token that Ray finds on this machine, and where; None without one.

    Raises InputError for a file that RAY_AUTH_TOKEN_PATH names and that cannot be read.
    """
    named = os.environ.get(FILE)
    if not os.environ.get(TOKEN) and named:
        try:
            Path(named).read_bytes()
        except OSError as error:
            raise InputError(
                FILE,
                "a file with the cluster's token",
                f"{named} ({error.strerror})",
                f"Mend or unset {FILE}.",
            ) from None
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    if not loader.has_token(ignore_auth_mode=True):
        return None
    where = TOKEN if os.environ.get(TOKEN) else named or "~/.ray/auth_token"
    return loader.get_raw_token(ignore_auth_mode=True), where


def headers(mode: str | None, address: str) -> dict[str, str]:
    """What a request to the dashboard at `address` carries, where its `mode` is "token", "disabled" or unknown (None).

    Raises FacultyError where a token is wanted and none is here.
    """
    if mode == "disabled":
        return {}
    found = token()
    if found is None:
        if mode == "token":
            raise missing(address)
        return {}
    return {"Authorization": f"Bearer {found[0]}"}


def join(address: str) -> None:
    """Put this process into the authentication mode of the cluster at `address` (HOST:PORT or ray://HOST:PORT).

    Raises FacultyError where the cluster wants a token and none is here, where it takes another one, and where
    RAY_AUTH_MODE forbids what it wants.
    """
    wanted = _refused(address)
    if wanted is None and MODE in os.environ:  # nobody knows better than who set it
        wanted = os.environ[MODE].lower() == "token"
    if wanted is None:
        wanted = token() is not None
    if not wanted:
        set_mode("disabled")
        return
    if os.environ.get(MODE, "token").lower() != "token":
        raise FacultyError(
            f"Ray at {address} wants a token, and {MODE}={os.environ[MODE]} keeps it back: unset {MODE}."
        )
    found = token()
    if found is None:
        raise missing(address)
    if _refused(address, found[0]):
        raise stale(address)
    set_mode("token")


def set_mode(mode: str | None) -> None:
    """Ray's authentication mode, in this process and those that it starts; None leaves it to Ray again."""
    if mode is None:
        os.environ.pop(MODE, None)
    else:
        os.environ[MODE] = mode
    Config.initialize("")  # what Ray read when it was imported
    AuthenticationTokenLoader.instance().reset_cache()


def missing(address: str) -> FacultyError:
    """The cluster wants a token and this machine has none."""
    return FacultyError(
        f"Ray at {address} wants a token, and this machine has none. Copy the head's ~/.ray/auth_token to the same "
        f"place here, or set {TOKEN} to what `ray get-auth-token` prints on the head."
    )


def stale(address: str) -> FacultyError:
    """The cluster takes another token than this machine's."""
    found = token()
    return FacultyError(
        f"Ray at {address} takes another token than the one of {found[1] if found else 'this machine'}. "
        f"Put the head's there (`ray get-auth-token` prints it on the head)."
    )


def _refused(address: str, with_token: str | None = None) -> bool | None:
    """Whether the cluster refuses a call with that token, or with none. None where it does not answer the question."""
    client = address.startswith("ray://")
    channel = _channel(address.removeprefix("ray://"))
    call: Callable = _ping_client if client else _ask_gcs
    metadata = [("authorization", f"Bearer {with_token}")] if with_token else []
    try:
        call(channel, metadata)
    except grpc.RpcError as error:
        code = error.code()  # type: ignore[attr-defined]
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return True
        return None
    finally:
        channel.close()
    return False


def _channel(address: str) -> grpc.Channel:
    """A channel that adds no token by itself, as Ray's own do in token mode."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address)
    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, chain))


def _ask_gcs(channel: grpc.Channel, metadata: list[tuple[str, str]]) -> None:
    stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    stub.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), metadata=metadata, timeout=PATIENCE_S)


def _ping_client(channel: grpc.Channel, metadata: list[tuple[str, str]]) -> None:
    stub = ray_client_pb2_grpc.RayletDriverStub(channel)
    kind = ray_client_pb2.ClusterInfoType.PING
    stub.ClusterInfo(ray_client_pb2.ClusterInfoRequest(type=kind), metadata=metadata, timeout=PATIENCE_S)
