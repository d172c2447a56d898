"""Where clients run: in this process, in Ray actors, or on machines of their own."""
