"""Many runs in one go."""
