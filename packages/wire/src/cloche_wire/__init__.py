"""What crosses a boundary in Cloche: messages, framing, signatures and errors, without any I/O."""
