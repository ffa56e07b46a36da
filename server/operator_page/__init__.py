"""The coordinator's page for its operators: what `server.monitor.CoordinatorMonitor.status` says, to be looked at."""

from server.operator_page.app import operator_app

__all__ = ["operator_app"]
