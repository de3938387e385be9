// The library of the demo application: on the verity root it may be mapped, a copy of it on tmpfs must not.
const char *ipe_probe_library(void);

const char *ipe_probe_library(void)
{
    return "the library is mapped";
}
