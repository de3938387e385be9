// A dynamically linked application for the verity root: calls its library, or loads another one: probe-app dlopen PATH.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const char *ipe_probe_library(void);

/* Makes the file larger than a block of SquashFS (128 KiB), which packs smaller files together: a damaged one must not hurt others. */
__attribute__((used)) static const unsigned char filler[160 * 1024] = {1};

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "dlopen")) {
        if (!dlopen(argv[2], RTLD_NOW)) {
            printf("%s\n", dlerror());
            return 3;
        }
        printf("dlopen took it\n");
        return 0;
    }
    printf("%s\n", ipe_probe_library());
    return 0;
}
