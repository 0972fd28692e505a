"""Ledgers in which certain clients do not share a bucket, as two of any 2,048 do."""

from server.cluster.ledger import Ledger


def ledger_for(*clients: str, rows: int = 4) -> Ledger:
    """Return a ledger that tells these clients apart.

    Args:
        clients: their addresses.
        rows: how many workers there can be at once.
    """
    while True:
        ledger = Ledger(rows)
        if len({ledger.bucket(client) for client in clients}) == len(clients):
            return ledger
