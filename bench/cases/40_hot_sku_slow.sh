# One SKU, 64 clients, a commit of a millisecond.
. "$bench_dir/hot_sku.sh"
case_commit=slow
case_target='techally>=30 techally>=1*techally_16 techally>=0.9*many_skus'
