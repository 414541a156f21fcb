"""What a run will need of the devices it is for, found by compiling its programs without them."""
