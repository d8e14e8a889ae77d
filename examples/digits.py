"""Two small models and their training script. It runs, raises no error, and is wrong in nine places.

`make demo` shows what auditor finds in it, which fixes it can prove, and what the file looks like afterwards.
"""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return (x.float() * torch.rsqrt(variance + self.eps)).type_as(x) * self.weight


class Attention(nn.Module):
    """A transformer block on image rows: its dropouts stay on in evaluation."""

    def __init__(self, dim=32, heads=4, classes=10):
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        batch, length, dim = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)), 0.1)
        return self.head(x.mean(dim=1))


class DigitNet(nn.Module):
    """A convolutional network whose classifier can never learn, and of which the optimiser sees only a part."""

    def __init__(self, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)]
        self.hidden = nn.Linear(16 * 16, 64)
        self.drop = nn.Dropout(0.9)
        self.head = nn.Linear(64, classes)
        for layer in (self.hidden, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = F.relu(x + block(x))
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)
        return F.softmax(self.head(self.drop(F.relu(self.hidden(x)))), dim=1)


def evaluate(model, images, labels):
    with torch.no_grad():
        correct = model(images).argmax(dim=1) == labels
    return correct.float().mean().item()


def main():
    images, labels = torch.randn(256, 1, 28, 28), torch.randint(0, 10, (256,))
    model = DigitNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(3):
        for batch in torch.randperm(256).split(32):
            optimizer.zero_grad()
            loss = criterion(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        print(epoch, loss.item(), evaluate(model, images, labels))


if __name__ == "__main__":
    main()
