#pragma once

// Counts what the calling thread allocates between begin and end.
void allocation_count_begin(void);
void allocation_count_end(void);
// How many there were since the reset.
unsigned long allocation_count(void);
void allocation_count_reset(void);
// Prints the stack of the first allocation counted since the reset.
void allocation_count_print_stack(void);
