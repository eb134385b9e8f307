"""Decides whether a connection or a flow of datagrams is relayed, and where it goes.  No I/O."""

import asyncio
import enum
import inspect
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..context import LAYOUTS, ContextError, Layout, OneOf, OriginalDestination
from ..redirect import Redirect

Address = tuple[Any, ...]
"""(host, port), or (host, port, flowinfo, scope_id) for IPv6; the host is numeric."""

_log = logging.getLogger("wfpioctl.relay")


class Decision(enum.Enum):
    """What a policy may answer, beside another address to go to."""

    PERMIT = "permit"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Flow:
    """What a policy decides on.

    Attributes:
        client: the client's address.
        destination: where the relay is about to go.
        redirect: the connection's redirect, or None if it was not redirected.
        original: what the context says: destination, process and so on; None if nothing.
    """

    client: Address
    destination: Address
    redirect: Redirect | None
    original: OriginalDestination | None


Answer = Decision | Address
Policy = Callable[[Flow], Answer | Awaitable[Answer]]
"""Decides on a flow, at once or as a coroutine: PERMIT, BLOCK, or an address to go to instead.

The address is numeric.  Whatever a policy raises blocks the flow, and is logged and counted.
"""


class RefusedError(Exception):
    """Why something is not relayed; ``detail`` is for the log."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Gate:
    """The rules of a relay; the arguments are those of Relay."""

    def __init__(
        self,
        layout: Layout | OneOf | str,
        to: Address | None,
        direct: bool,
        policy: Policy | None,
        policy_timeout: float,
    ) -> None:
        if to is not None:
            ipaddress.ip_address(to[0])
        self.layout: Layout | OneOf = LAYOUTS[layout] if isinstance(layout, str) else layout
        self.direct = direct
        self._to = to
        self._policy = policy
        self._policy_timeout = policy_timeout

    async def decide(
        self,
        client: Address,
        redirect: Redirect | None,
        ask_the_system: Callable[[], OriginalDestination | None] = lambda: None,
    ) -> Address:
        """Where a client's traffic goes: as ``to`` says, its context, or the system; and then the
        policy.  RefusedError if nowhere."""
        if redirect is None and not self.direct:
            raise RefusedError("not redirected")
        if self._to is not None and self._policy is None:
            return self._to  # a context that nobody looks at can be as it likes
        original = self._original(redirect, ask_the_system)
        destination = self._to
        if destination is None:
            if original is None:
                raise RefusedError("no destination")
            destination = original.address
        if self._policy is None:
            return destination
        return await self._ask(self._policy, Flow(client, destination, redirect, original))

    def _original(
        self,
        redirect: Redirect | None,
        ask_the_system: Callable[[], OriginalDestination | None],
    ) -> OriginalDestination | None:
        try:
            if redirect is not None and redirect.context:
                return self.layout.decode(redirect.context)
            if self._to is None:
                return ask_the_system()
        except ContextError as error:
            if self._to is None:
                raise RefusedError("bad context", error) from None
        return None

    async def _ask(self, policy: Policy, flow: Flow) -> Address:
        """Where the policy lets a flow go; RefusedError if it does not permit it."""
        try:
            answer = policy(flow)
            if inspect.isawaitable(answer):
                async with asyncio.timeout(self._policy_timeout):
                    answer = await answer
            if answer is Decision.PERMIT:
                return flow.destination
            if answer is not Decision.BLOCK:
                host, _port = answer[:2]
                ipaddress.ip_address(host)
                return answer
        except Exception as error:
            _log.exception("the policy failed; the connection is blocked")
            raise RefusedError("policy failed", repr(error)) from None
        raise RefusedError("blocked")
