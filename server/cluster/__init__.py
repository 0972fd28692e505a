"""The cluster: workers, engines, and how a task of any operation reaches a free engine."""
