"""Kernel image headers as C text for dissect.cstruct.

Source: Documentation/arch/x86/boot.rst, Documentation/arch/arm64/booting.rst, arch/riscv/include/asm/image.h,
drivers/firmware/efi/libstub/zboot-header.S. PE headers are in `c_pe`.
"""

C_KERNEL_IMAGE = """
struct x86_setup_header {           /* at 0x1f1 */
    uint8   setup_sects;
    uint16  root_flags;
    uint32  syssize;
    uint16  ram_size;
    uint16  vid_mode;
    uint16  root_dev;
    uint16  boot_flag;              /* 0xaa55 */
    uint16  jump;
    char    header[4];              /* HdrS */
    uint16  version;
    uint32  realmode_swtch;
    uint16  start_sys_seg;
    uint16  kernel_version;
    uint8   type_of_loader;
    uint8   loadflags;
    uint16  setup_move_size;
    uint32  code32_start;
    uint32  ramdisk_image;
    uint32  ramdisk_size;
    uint32  bootsect_kludge;
    uint16  heap_end_ptr;
    uint8   ext_loader_ver;
    uint8   ext_loader_type;
    uint32  cmd_line_ptr;
    uint32  initrd_addr_max;
    uint32  kernel_alignment;
    uint8   relocatable_kernel;
    uint8   min_alignment;
    uint16  xloadflags;
    uint32  cmdline_size;
    uint32  hardware_subarch;
    uint64  hardware_subarch_data;
    uint32  payload_offset;
    uint32  payload_length;
};

struct arm64_riscv_header {         /* one layout for both */
    uint32  code0;
    uint32  code1;
    uint64  text_offset;
    uint64  image_size;
    uint64  flags;
    uint32  version;
    uint32  reserved1;
    uint64  reserved2;
    uint64  magic;                  /* "RISCV" for riscv, 0 for arm64 */
    char    magic2[4];              /* "ARM\\x64", "RSC\\x05" */
    uint32  pe_header_offset;
};

struct zboot_header {
    char    mz_magic[4];
    char    image_type[4];          /* zimg */
    uint32  payload_offset;
    uint32  payload_size;
    uint32  reserved[2];
    char    compression[32];
};
"""
