"""What stands for mini-batches before there are any, the operations of one, and how many seconds these take."""
