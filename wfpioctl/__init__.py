"""The Windows Filtering Platform's connection redirect IOCTLs.

A proxy to which a WFP driver redirected a connection queries the connection's records and context,
and sets the records on the socket with which it goes on to the real destination::

    redirect = wfpioctl.read_redirect(accepted)
    if redirect is not None:
        upstream = wfpioctl.create_connection(redirect, destination)
"""

try:
    from ._wfpioctl import (
        query_redirect_context,
        query_redirect_context_into,
        query_redirect_records,
        query_redirect_records_into,
        set_redirect_records,
        transfer_redirect_records,
    )
except ModuleNotFoundError as _error:
    if _error.name != "wfpioctl._wfpioctl":
        raise
    raise ImportError(
        f"wfpioctl in {__path__[0]!r} has no built extension: this is a source tree.  Build it with"
        ' "python -m pip install -e ." in its folder, or import from elsewhere after'
        ' "python -m pip install .".'
    ) from None

from .constants import (
    IP6T_SO_ORIGINAL_DST,
    IP_WFP_REDIRECT_CONTEXT,
    IP_WFP_REDIRECT_RECORDS,
    IPV6_WFP_REDIRECT_CONTEXT,
    IPV6_WFP_REDIRECT_RECORDS,
    SIO_QUERY_WFP_ALE_ENDPOINT_HANDLE,
    SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT,
    SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS,
    SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS,
    SO_ORIGINAL_DST,
)
from .errors import (
    AccessDeniedError,
    BadAddressError,
    CallbackInProgressError,
    InsufficientBufferError,
    InvalidArgumentError,
    IoctlInterruptedError,
    NetworkDownError,
    NotASocketError,
    NotConnectedError,
    NotRedirectedError,
    NotSupportedError,
    OperationAbortedError,
    ProtocolOptionError,
    RedirectError,
)
from .redirect import Redirect, create_connection, read_redirect, socket_factory

__all__ = [
    "IP6T_SO_ORIGINAL_DST",
    "IPV6_WFP_REDIRECT_CONTEXT",
    "IPV6_WFP_REDIRECT_RECORDS",
    "IP_WFP_REDIRECT_CONTEXT",
    "IP_WFP_REDIRECT_RECORDS",
    "SIO_QUERY_WFP_ALE_ENDPOINT_HANDLE",
    "SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT",
    "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS",
    "SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS",
    "SO_ORIGINAL_DST",
    "AccessDeniedError",
    "BadAddressError",
    "CallbackInProgressError",
    "InsufficientBufferError",
    "InvalidArgumentError",
    "IoctlInterruptedError",
    "NetworkDownError",
    "NotASocketError",
    "NotConnectedError",
    "NotRedirectedError",
    "NotSupportedError",
    "OperationAbortedError",
    "ProtocolOptionError",
    "Redirect",
    "RedirectError",
    "create_connection",
    "query_redirect_context",
    "query_redirect_context_into",
    "query_redirect_records",
    "query_redirect_records_into",
    "read_redirect",
    "set_redirect_records",
    "socket_factory",
    "transfer_redirect_records",
]
