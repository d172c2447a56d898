"""What a run trains on: who holds how many images of which class."""
