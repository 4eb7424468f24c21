"""The one exception a user of the local cluster sees, always a sentence that says what to do."""


class ClusterProblem(Exception):
    """Something the person at the keyboard can cure; its text is printed as it is, without a stack trace."""
