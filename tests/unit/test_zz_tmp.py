import numpy as np, torch, pytest
from client.batches import BatchMaker
from shared.config import TrainingConfig
@pytest.mark.parametrize("bf16",[False,True])
@pytest.mark.parametrize("mb",[3,8,16])
def test_x(world, histories_of, tiny_model, bf16, mb):
    rng=np.random.default_rng(0)
    users=[rng.permutation(30)[:n].tolist() for n in rng.integers(2,10,100)]
    mk=BatchMaker(histories_of(users), np.zeros((0,384),np.float16), tiny_model)
    C=.01
    f=lambda rows: world.gradients.clipped_sum(mk.training(np.array(rows),TrainingConfig(drop_events=0.,microbatch=mb),b"k"), world.catalogue, lambda b: torch.zeros(*b.items.shape,world.n_items), C, bf16=bf16).values
    a=f(list(range(100))); w=[]
    for k in range(0,100,10):
        b=f([j for j in range(100) if j!=k]); o=f([k]); w.append((np.linalg.norm(a-b)/C-1, np.linalg.norm(a-b-o)/C))
    print("RES",bf16,mb,"max move-1",max(x for x,_ in w),"max excess",max(y for _,y in w))
