"""The block at the end of a signed kernel module as C text (include/linux/module_signature.h); `module_signature` reads and writes it."""

C_MODULE_SIGNATURE = """
struct module_signature {
    uint8   algo;
    uint8   hash;
    uint8   id_type;
    uint8   signer_len;
    uint8   key_id_len;
    uint8   pad[3];
    uint32  sig_len;
};
"""
