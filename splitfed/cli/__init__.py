"""The command line: one module for each subject; each command calls what `import splitfed` offers."""
