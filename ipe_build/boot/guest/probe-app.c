// A dynamically linked application for the verity root: calls its library, or loads another one: probe-app dlopen PATH.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

const char *ipe_probe_library(void);

/* 160 KiB that do not compress: SquashFS packs files below 128 KiB together, and damage to this one must not hurt others. */
__asm__(".section .rodata.filler, \"a\", @progbits\n"
        ".set filler, 1\n"
        ".rept 20480\n"
        ".quad filler\n"
        ".set filler, filler * 6364136223846793005 + 1442695040888963407\n"
        ".endr\n"
        ".previous\n");

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
