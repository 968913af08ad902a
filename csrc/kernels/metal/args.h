/* Arguments of the Metal kernels, one struct a family: read by C and, as the first part of the shader source, by Metal. Only int and float, whose
 * size and alignment are the same on both sides. Widths are in floats, *_bytes in bytes. */
typedef struct metal_linear_args {      /* y[rows][n] = act(W x + bias) + add */
    int n, k, rows;
    int row_bytes;                      /* of W */
    int has_bias, has_add, act;         /* act: enum act_kind, -1 none */
} metal_linear_args;

typedef struct metal_embed_args {       /* y[r] = scale * W[ids[r]] */
    int width, row_bytes;
    float scale;
} metal_embed_args;

typedef struct metal_norm_args {        /* `parts` vectors of n values side by side in a row, each normalised alone */
    int n, parts;
    int shared;                         /* 1: w (and bias) have n values, 0: parts * n */
    int has_bias, has_add;
    float eps;
} metal_norm_args;

typedef struct metal_rope_args {
    int heads, dim, rot, neox, has_norm;
    float eps;
} metal_rope_args;

typedef struct metal_map_args {         /* element-wise: n values in all */
    int n;
    int act;                            /* glu, act */
    int width, gate_width;              /* glu: of a row of the output, and of the gate (1 or width) */
    float by;                           /* scale, softcap */
} metal_map_args;

typedef struct metal_angles_args {
    int n;                              /* frequencies */
    float mscale;
} metal_angles_args;

typedef struct metal_attn_args {
    int heads, kv_heads, dim;
    int page_bytes, layer_offset;       /* of the group's page; of the layer in it */
    int k_bytes;                        /* of K of one head in a page; V has as many and follows */
    int max_pages, n_groups, group;     /* page of position p of sequence s: table[(s * n_groups + group) * max_pages + p / 16] */
    int window;                         /* 0: every position */
    int splits;                         /* decode: parts that the positions are cut into, each with a state of its own */
    float scale, softcap;
} metal_attn_args;
