"""Would the service start? `python -m server.check` and gunicorn's arguments try it without listening."""

import os
import sys

if __name__ == "__main__":
    try:
        int(os.environ.get("WEB_CONCURRENCY", "1"))
    except ValueError:
        sys.exit("flipcluster: WEB_CONCURRENCY: Input should be a whole number, 1 or more")
    # Not before: gunicorn reads that variable when it is imported, and ends with a traceback.
    from server.gateway.preflight import main

    main()
