import pytest, torch
lost=[]
class C:
    pass
def boom(): raise RuntimeError("CUDA error: an illegal memory access")
@pytest.mark.parametrize("i", range(6))
@pytest.mark.gpu
def test_a(i, monkeypatch):
    if i==2:
        torch.cuda.is_available=lambda: True; torch.cuda.is_initialized=lambda: True
        torch.cuda.synchronize=boom
    if torch.cuda.synchronize is boom: raise RuntimeError("sticky")
