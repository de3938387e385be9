"""PE/COFF headers as C text for dissect.cstruct.

Source: "PE Format" of Microsoft's Win32 documentation; UEFI specification 2.10, section 32.2 (WIN_CERTIFICATE).
"""

C_PE = """
struct coff_header {
    char    signature[4];           /* PE\\0\\0 */
    uint16  machine;
    uint16  number_of_sections;
    uint32  timestamp;
    uint32  symbol_table;
    uint32  number_of_symbols;
    uint16  optional_header_size;
    uint16  characteristics;
};

struct optional_header_32 {         /* magic 0x10b; data directories follow */
    uint16  magic;
    uint8   linker_version[2];
    uint32  size_of_code;
    uint32  size_of_initialized_data;
    uint32  size_of_uninitialized_data;
    uint32  entry_point;
    uint32  base_of_code;
    uint32  base_of_data;
    uint32  image_base;
    uint32  section_alignment;
    uint32  file_alignment;
    uint16  os_version[2];
    uint16  image_version[2];
    uint16  subsystem_version[2];
    uint32  reserved;
    uint32  size_of_image;
    uint32  size_of_headers;
    uint32  checksum;
    uint16  subsystem;
    uint16  dll_characteristics;
    uint32  stack_and_heap[4];
    uint32  loader_flags;
    uint32  number_of_directories;
};

struct optional_header_64 {         /* magic 0x20b */
    uint16  magic;
    uint8   linker_version[2];
    uint32  size_of_code;
    uint32  size_of_initialized_data;
    uint32  size_of_uninitialized_data;
    uint32  entry_point;
    uint32  base_of_code;
    uint64  image_base;
    uint32  section_alignment;
    uint32  file_alignment;
    uint16  os_version[2];
    uint16  image_version[2];
    uint16  subsystem_version[2];
    uint32  reserved;
    uint32  size_of_image;
    uint32  size_of_headers;
    uint32  checksum;
    uint16  subsystem;
    uint16  dll_characteristics;
    uint64  stack_and_heap[4];
    uint32  loader_flags;
    uint32  number_of_directories;
};

struct data_directory {
    uint32  address;                /* a file offset for the certificate table, else an address */
    uint32  size;
};

struct section_header {
    char    name[8];
    uint32  virtual_size;
    uint32  virtual_address;
    uint32  raw_size;
    uint32  raw_offset;
    uint32  relocations;
    uint32  line_numbers;
    uint16  number_of_relocations;
    uint16  number_of_line_numbers;
    uint32  characteristics;
};

struct win_certificate {
    uint32  length;                 /* with these 8 bytes, without the padding to a multiple of 8 */
    uint16  revision;               /* 0x0200 */
    uint16  type;                   /* 2: PKCS#7 SignedData */
};
"""
