"""The program `espalier`, also as `python -m espalier`: what must hold before anything else is imported."""

import signal
import sys


def main() -> None:
    """Run the command line; see `espalier.cli`. Ctrl-C during the imports waits until they are done."""
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        from espalier.cli import main as run
    except ModuleNotFoundError as error:
        from espalier import only_runtime

        refusal = only_runtime("the command line", error)
        print(refusal, file=sys.stderr)
        if "--json" in sys.argv:
            import json

            print(json.dumps({"error": refusal.to_json()}))
        sys.exit(refusal.exit_code)
    signal.signal(signal.SIGINT, before)
    run(interrupted=bool(waiting))


if __name__ == "__main__":
    main()
