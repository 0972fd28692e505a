"""The cluster: which cores we have, who works on them, and how work reaches a free engine."""
