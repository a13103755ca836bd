"""The suites run under another interpreter, so this session does not collect them."""

collect_ignore = ["suite", "memory_suite", "image_suite"]
