/* The functions of macOS's libSystem that the library uses, on Linux. */
#ifndef DARWIN_H
#define DARWIN_H

/* The function that stands for a symbol of libSystem (with its underscore), or NULL. */
void *darwin_symbol(const char *name);

#endif
