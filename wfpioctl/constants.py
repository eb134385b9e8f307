"""The IOCTLs, options and codes of WFP connection redirection, spelled as in the Windows SDK.

Each name has one home, here.  Sources: mstcpip.h and ws2ipdef.h for the IOCTLs and options,
winerror.h and fwpmu.h for the codes.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without typing, whose import outlasts all of ours
if TYPE_CHECKING:
    from typing import Final

# W01 to W03.  Both QUERY codes carry the "in" bit although they only return data (W07).
SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS: Final = 0x980000DC
SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT: Final = 0x980000DD
SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS: Final = 0x980000DE

# W04: socket options, and types of control messages, at IPPROTO_IP and IPPROTO_IPV6.
IP_WFP_REDIRECT_RECORDS: Final = 60
IPV6_WFP_REDIRECT_RECORDS: Final = 60
IP_WFP_REDIRECT_CONTEXT: Final = 70
IPV6_WFP_REDIRECT_CONTEXT: Final = 70

# W05: at IPPROTO_IP and IPPROTO_IPV6.
SO_ORIGINAL_DST: Final = 0x300F
IP6T_SO_ORIGINAL_DST: Final = 0x300F

# W06
SIO_QUERY_WFP_ALE_ENDPOINT_HANDLE: Final = 0x580000CD

# Codes that the calls can fail with (W10 to W20).
ERROR_INSUFFICIENT_BUFFER: Final = 122
ERROR_MORE_DATA: Final = 234
WSA_OPERATION_ABORTED: Final = 995
WSA_IO_INCOMPLETE: Final = 996
WSA_IO_PENDING: Final = 997
ERROR_NOT_FOUND: Final = 1168
WSAEINTR: Final = 10004
WSAEACCES: Final = 10013
WSAEFAULT: Final = 10014
WSAEINVAL: Final = 10022
WSAEINPROGRESS: Final = 10036
WSAENOTSOCK: Final = 10038
WSAEMSGSIZE: Final = 10040
WSAENOPROTOOPT: Final = 10042
WSAEOPNOTSUPP: Final = 10045
WSAENETDOWN: Final = 10050
WSAENOBUFS: Final = 10055
WSAENOTCONN: Final = 10057
FWP_E_NOT_FOUND: Final = 0x80320008
