"""Opens a page on which a model can be tried: upload, paste or pick a picture, ask, look inside.

unit-jax app [--model demo] [--port 7860]

It listens on this machine alone unless --host says otherwise, and asks nothing of any other. It
needs the extra `app`: pip install "unit-jax[app]".
"""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parse(arguments)
    try:
        import python_multipart  # noqa: F401  (forms need it)
        import uvicorn

        from unit_jax.page import app
    except ImportError as error:
        print(f'error: the page needs {error.name}: pip install "unit-jax[app]"', file=sys.stderr)
        return 1
    import unit_jax
    from unit_jax.tools import predict

    predict.keep_programs()
    try:
        model = unit_jax.load(options.model, data_dir=options.data_dir, batch_size=1)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    limits = app.Limits(upload_bytes=round(options.max_mb * 1e6), per_minute=options.per_minute)
    public = options.host not in ("127.0.0.1", "localhost", "::1")
    hosts = ("*",) if public else ()
    print(f"{model.source} on http://{options.host}:{options.port} (Ctrl-C ends it)", flush=True)
    if public:
        print("anybody who reaches this machine can use it", flush=True)
    uvicorn.run(
        app.make_app(model, limits, hosts),
        host=options.host,
        port=options.port,
        log_level="warning",
        server_header=False,
    )
    return 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo", help='"demo", a working folder, a step\'s folder, a file')
    add("--data_dir", default="", help="prepared data with the names that old weights lack")
    add("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    add("--port", type=int, default=7860, help="port; default 7860")
    add("--max_mb", type=float, default=10.0, help="largest upload in megabytes; default 10")
    add("--per_minute", type=int, default=120, help="questions of one visitor; default 120")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
