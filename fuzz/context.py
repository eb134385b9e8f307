"""Any bytes into every context decoder: an OriginalDestination or a ContextError, and nothing else;
what decodes, encodes again and decodes to the same."""

import sys

import atheris

with atheris.instrument_imports(include=["wfpioctl"]):
    from wfpioctl import context

LAYOUTS = [
    *context.LAYOUTS.values(),
    context.Layout(
        "fuzzed",
        [
            context.raw("magic", 4, equals=b"ACME"),
            context.u32("version", equals=2),
            context.sockaddr("destination", 28),
            context.sockaddr("source", 16, optional=True),
            context.port("listener_port", host_order=True),
            context.padding(6),
            context.u64("process_id"),
            context.wchar("image_path", 20),
            context.ipv6("via"),
            context.ipv4("gateway", host_order=True),
            context.u8("flags"),
            context.u16("more"),
        ],
    ),
]


def refused(error: context.ContextError, size: int) -> None:
    assert error.layout
    assert 0 <= error.offset <= size
    str(error)


def test_one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    layout = LAYOUTS[provider.ConsumeIntInRange(0, len(LAYOUTS) - 1)]
    blob = provider.ConsumeBytes(1000)
    try:
        found = context.decode(blob, layout)
    except context.ContextError as error:
        refused(error, max(len(blob), layout.size))
        return
    assert found.host
    assert 0 <= found.port < 1 << 16
    str(found)
    again = context.encode(found, layout)
    assert context.decode(again, layout) == found, (blob, found)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
