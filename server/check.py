"""Would the service start? `python -m server.check` and gunicorn's arguments try it without listening."""

from server.gateway.preflight import main

if __name__ == "__main__":
    main()
