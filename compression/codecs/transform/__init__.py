"""What turns numbers into fewer or smaller ones before they are coded, and codes few bits each."""
