// A dynamically linked application for the verity root: calls its library, or loads another one: probe-app dlopen PATH.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const char *ipe_probe_library(void);

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
