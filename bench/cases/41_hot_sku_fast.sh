# One SKU, 64 clients, commits as fast as the machine's.
. "$bench_dir/hot_sku.sh"
case_commit=fast
case_target='techally>=12 techally>=1*techally_16 techally>=0.9*many_skus'
