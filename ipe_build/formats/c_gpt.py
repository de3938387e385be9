"""The GUID partition table as C text (UEFI 2.10, chapter 5); `gpt` reads and writes it."""

C_GPT = """
struct mbr_record {
    uint8   boot_indicator;
    uint8   start_chs[3];
    uint8   os_type;
    uint8   end_chs[3];
    uint32  start_lba;
    uint32  size_lba;
};

struct mbr {
    uint8       boot_code[440];
    uint32      disk_signature;
    uint16      unknown;
    mbr_record  records[4];
    uint16      signature;
};

struct gpt_header {
    char    signature[8];
    uint32  revision;
    uint32  header_size;
    uint32  header_crc32;
    uint32  reserved;
    uint64  my_lba;
    uint64  alternate_lba;
    uint64  first_usable_lba;
    uint64  last_usable_lba;
    char    disk_guid[16];
    uint64  partition_entry_lba;
    uint32  number_of_entries;
    uint32  size_of_entry;
    uint32  entries_crc32;
};

struct gpt_entry {
    char    type_guid[16];
    char    unique_guid[16];
    uint64  first_lba;
    uint64  last_lba;
    uint64  attributes;
    char    name[72];
};
"""
