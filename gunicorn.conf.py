"""gunicorn's settings: `gunicorn` alone, in this directory, starts the cluster.

Everything here can be overridden on the command line (`gunicorn --help`). What is the service's own is set
with `FLIP_` variables: see docs/settings.md. Names with an underscore are ours; gunicorn takes every other
global for a setting.
"""

import os
import sys

# Found from whichever directory gunicorn was started in; a reload must not add it again.
_here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 a path list holds text
if _here not in sys.path:
    sys.path.insert(0, _here)

# A reload (HUP) runs this file again in the same process: without this it would go on with the old code.
for _name in [_name for _name in sys.modules if _name.partition(".")[0] == "server"]:
    del sys.modules[_name]

from server.logs import open_standard_streams

open_standard_streams()

from server.cluster.cpus import usable_cores
from server.gateway.arbiter import Hooks
from server.gateway.logger import gunicorn_logger
from server.settings import InvalidSettings, Settings

try:
    _settings = Settings.from_environ(os.environ)
except InvalidSettings as _error:
    sys.exit("\n".join(f"flipcluster: {_line}" for _line in str(_error).splitlines()))

# A reload makes these again too.
_hooks = Hooks(_settings)


# --- what runs -----------------------------------------------------------------------------------------

# The worker builds the app itself, from what the arbiter gives it; gunicorn requires a name.
wsgi_app = "server.app:get_app()"

worker_class = "server.gateway.worker.Worker"

# One per usable core. Each brings an engine, so more would only make images wait for each other;
# WEB_CONCURRENCY=1 is the single process that the benchmark compares with.
workers = int(os.environ.get("WEB_CONCURRENCY") or usable_cores())

# `bind` is left alone: 127.0.0.1:8000 by default, or -b, or $PORT as gunicorn users expect. A port that
# does not exist would end in a traceback.
_port = os.environ.get("PORT") or "0"
if not (_port.isascii() and _port.isdecimal() and int(_port) < 2**16):
    sys.exit(f"flipcluster: PORT: Input should be a port from 0 to 65535 (got {_port!r})")

# --- how it behaves ------------------------------------------------------------------------------------

# A worker only moves bytes, so one that gives no sign of life for this long, in seconds, is stuck.
timeout = 30

# How long a worker may take to finish what it has accepted before it is killed, in seconds.
graceful_timeout = 30

# How long an idle connection stays open, in seconds. Clients that send one image after the other need
# little; a load balancer in front that reuses connections should have a shorter timeout than this. After a
# 503 it begins when Retry-After is over.
keepalive = 5

# How many connections a worker holds at once; one more is answered 503. Each costs a few kilobytes while it
# is idle, and every client of a pool of connections holds some.
worker_connections = 2048

# A client that leaves has its request cancelled at once: no engine should work for nothing.
asgi_disconnect_grace_period = 0

# Our app needs its lifespan: the engine starts and ends in it.
asgi_lifespan = "on"

# uvloop was measured and gains nothing here: the kernel does the work (docs/adr/0004).
asgi_loop = "asyncio"

# Clients need one socket, so gunicorn does not open its control socket (~/.gunicorn/gunicorn.ctl).
control_socket_disable = True

# One line per request is written by the app; gunicorn's own log has the same form.
logger_class = gunicorn_logger(_settings.log_format)


# --- the life of a worker: server/gateway/arbiter.py ----------------------------------------------------

on_starting = _hooks.on_starting
pre_exec = _hooks.pre_exec
on_reload = _hooks.on_reload
when_ready = _hooks.when_ready
pre_fork = _hooks.pre_fork
post_fork = _hooks.post_fork
child_exit = _hooks.child_exit
on_exit = _hooks.on_exit
