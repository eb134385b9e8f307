"""The answers on which documents, reports and programs disagree (W13 to W17), as dialects.

Code that talks to a real kernel must survive every one of them.
"""

from dataclasses import dataclass

from .. import constants as c


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kernel answers where the sources disagree.

    Attributes:
        name: what it is called in a test's id.
        too_small: the code for a buffer that does not hold the answer (W13, W15).
        names_size: whether ``lpcbBytesReturned`` then is the size needed.
        minimum: bytes; a smaller buffer is WSAEINVAL (W14).
        not_redirected: the code for a connection that nobody redirected (W17).
        no_context: the code for a connection without a context; 0 is success with 0 bytes (W16).
    """

    name: str
    too_small: int = c.ERROR_INSUFFICIENT_BUFFER
    names_size: bool = True
    minimum: int = 0
    not_redirected: int = c.ERROR_NOT_FOUND
    no_context: int = 0


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("documented"),
        Dialect("ulong", minimum=4, not_redirected=c.FWP_E_NOT_FOUND),
        Dialect(
            "fault", too_small=c.WSAEFAULT, names_size=False, minimum=4, not_redirected=c.WSAEINVAL
        ),
        Dialect("nobufs", too_small=c.WSAENOBUFS, names_size=False, no_context=c.ERROR_NOT_FOUND),
        Dialect("msgsize", too_small=c.WSAEMSGSIZE, not_redirected=c.FWP_E_NOT_FOUND),
        Dialect("moredata", too_small=c.ERROR_MORE_DATA, names_size=False),
    )
}
"""Every dialect by name; "documented" reads the documentation literally."""
