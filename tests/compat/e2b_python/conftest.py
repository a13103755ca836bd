"""The suite runs under another interpreter, so this session does not collect it."""

collect_ignore = ["suite"]
